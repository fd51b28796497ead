import networkx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.cluster import hierarchy

from htm_env.trees.merge_tree import MergeTree

# 2 and 0 make node 4, that and 3 make node 5, 1 and that make the root 6
CATERPILLAR = MergeTree([[2, 0], [4, 3], [1, 5]], 4)
FOREST = MergeTree([[3, 1], [0, 5]], 5)


@st.composite
def forests(draw, complete=False):
    num_leaves = draw(st.integers(1, 9))
    steps = num_leaves - 1 if complete else draw(st.integers(0, num_leaves - 1))
    active, merges = list(range(num_leaves)), []
    for step in range(steps):
        pair = draw(st.permutations(active))[:2]
        merges.append(pair)
        active = [node for node in active if node not in pair] + [num_leaves + step]
    return MergeTree(np.array(merges, dtype=np.int64).reshape(-1, 2), num_leaves)


def test_nested_newick_and_text_keep_the_order_within_each_pair():
    assert CATERPILLAR.nested() == (1, ((2, 0), 3))
    assert CATERPILLAR.newick() == "(1,((2,0),3));"
    assert str(CATERPILLAR) == "(1, ((2, 0), 3))"


def test_heights_depths_clades():
    assert CATERPILLAR.heights().tolist() == [0, 0, 0, 0, 1, 2, 3]
    assert CATERPILLAR.depths().tolist() == [3, 1, 3, 2, 2, 1, 0]
    assert CATERPILLAR.height == 3
    assert CATERPILLAR.clades() == [{0, 2}, {0, 2, 3}, {0, 1, 2, 3}]


def test_a_partial_forest_has_several_roots():
    assert FOREST.roots() == [2, 4, 6]
    assert str(FOREST) == "2 | 4 | (0, (3, 1))"
    assert FOREST.nested(6) == (0, (3, 1))
    assert FOREST.newick(5) == "(3,1);"
    assert FOREST.heights().tolist() == [0, 0, 0, 0, 0, 1, 2]
    assert FOREST.depths().tolist() == [1, 2, 0, 2, 0, 1, 0]
    with pytest.raises(ValueError, match=r"3 roots, \[2, 4, 6\]"):
        FOREST.nested()
    with pytest.raises(ValueError, match="no node 7"):
        FOREST.newick(7)


def test_a_single_token_is_a_tree():
    tree = MergeTree(np.empty((0, 2), dtype=np.int64), 1)
    assert (tree.nested(), tree.newick(), str(tree), tree.height) == (0, "0;", "0", 0)
    assert tree.clades() == []


def test_networkx_points_from_parent_to_child():
    graph = CATERPILLAR.to_networkx()
    assert networkx.is_arborescence(graph)
    assert [node for node, leaf in graph.nodes(data="leaf") if leaf] == [0, 1, 2, 3]
    assert set(graph.edges(data="order")) == {
        (4, 2, 0),
        (4, 0, 1),
        (5, 4, 0),
        (5, 3, 1),
        (6, 1, 0),
        (6, 5, 1),
    }
    assert networkx.number_weakly_connected_components(FOREST.to_networkx()) == 3


def test_merges_are_a_read_only_copy_without_padding():
    given_merges = np.array([[2, 0], [-1, -1], [-1, -1]])
    tree = MergeTree(given_merges, 4)
    given_merges[0] = 3
    assert tree.merges.tolist() == [[2, 0]]
    with pytest.raises(ValueError, match="read-only"):
        tree.merges[0, 0] = 1


def test_equality_is_by_value_and_minds_the_order():
    same = MergeTree([[2, 0], [4, 3], [1, 5]], 4)
    assert same == CATERPILLAR and hash(same) == hash(CATERPILLAR)
    assert MergeTree([[0, 2], [4, 3], [1, 5]], 4) != CATERPILLAR
    assert MergeTree([[0, 1]], 3) != MergeTree([[0, 1]], 4)


@pytest.mark.parametrize(
    ("merges", "num_leaves", "sentence"),
    [
        ([[0, 1], [0, 3]], 4, "merge 1 joins node 0, which was merged before"),
        ([[0, 5]], 4, "merge 0 joins node 5, but the nodes are 0 to 3"),
        ([[0, 4]], 4, "merge 0 joins node 4, but the nodes are 0 to 3"),
        ([[0, -1]], 4, "merge 0 joins node -1"),
        ([[2, 2]], 4, "merge 0 joins node 2 with itself"),
        ([[0, 1], [2, 2]], 2, "merge 1 joins node 2 with itself"),
        ([[-1, -1], [0, 1]], 4, r"merge 0 is padding \(-1\), but merges follow"),
        ([[0, 1, 2]], 4, r"shape \(1, 3\)"),
        ([[0.0, 1.0]], 4, "float64"),
        ([], 0, "num_leaves is 0"),
    ],
)
def test_what_is_not_a_forest_is_refused(merges, num_leaves, sentence):
    with pytest.raises(ValueError, match=sentence):
        MergeTree(merges, num_leaves)


def test_more_merges_than_a_tree_holds_are_refused():
    with pytest.raises(ValueError, match="merge 1 joins node 0"):
        MergeTree([[0, 1], [0, 1]], 2)


def test_from_nested_numbers_the_merges_from_the_left():
    tree = MergeTree.from_nested(((3, 1), (0, 2)))
    assert tree.merges.tolist() == [[3, 1], [0, 2], [4, 5]]
    assert MergeTree.from_nested([[3, 1], [0, 2]]) == tree  # as JSON gives it


def test_from_newick_reads_what_other_programs_write():
    tree = MergeTree.from_newick(" ( (3:0.5, 1:2e-1)inner:1.0 ,(0,2) )root ;\n")
    assert tree.nested() == ((3, 1), (0, 2))


@pytest.mark.parametrize(
    ("nested", "sentence"),
    [
        ((0, 1, 2), "one holds 3"),
        ((0,), "one holds 1"),
        ((0, (1, 1)), r"once each, but are \[0, 1, 1\]"),
        ((0, 2), r"0 to 1, once each, but are \[0, 2\]"),
        ((-1, 0), r"once each, but are \[-1, 0\]"),
        ((0, "one"), "but one is 'one'"),
        ((0, True), "but one is True"),
    ],
)
def test_from_nested_refuses_what_is_no_binary_tree(nested, sentence):
    with pytest.raises(ValueError, match=sentence):
        MergeTree.from_nested(nested)


@pytest.mark.parametrize("text", ["", ";", "(0,1", "0,1)", "(0,1))", "(0,1)(2,3)", "(0,x);", "("])
def test_from_newick_refuses_what_is_no_tree(text):
    with pytest.raises(ValueError, match=r"ewick|parenthes|token|merge|tree"):
        MergeTree.from_newick(text)


def test_a_deep_chain_needs_no_recursion():
    num_leaves = 3000
    merges = [[0, 1]] + [[num_leaves + step, step + 2] for step in range(num_leaves - 2)]
    chain = MergeTree(merges, num_leaves)
    assert chain.height == num_leaves - 1
    assert MergeTree.from_newick(chain.newick()) == chain
    assert MergeTree.from_nested(chain.nested()) == chain


@given(forests(complete=True))
def test_texts_come_back_as_the_same_tree(tree):
    for back in (MergeTree.from_nested(tree.nested()), MergeTree.from_newick(tree.newick())):
        assert back.nested() == tree.nested()
        assert set(back.clades()) == set(tree.clades())


@given(forests())
def test_networkx_agrees_on_every_measure(tree):
    graph = tree.to_networkx()
    assert tree.roots() == sorted(node for node, degree in graph.in_degree if degree == 0)
    for node in graph:
        below = networkx.descendants(graph, node) | {node}
        distances = networkx.single_source_shortest_path_length(graph, node)
        assert tree.heights()[node] == max(distances.values())
        assert tree.depths()[node] == len(networkx.ancestors(graph, node))
        if node >= tree.num_leaves:
            leaves = {one for one in below if one < tree.num_leaves}
            assert tree.clades()[node - tree.num_leaves] == leaves


# ---------------------------------------------------------------- scipy's linkage


def test_a_linkage_counts_the_leaves_and_stands_at_the_steps():
    assert CATERPILLAR.to_linkage().tolist() == [[2, 0, 1, 2], [4, 3, 2, 3], [1, 5, 3, 4]]
    assert CATERPILLAR.to_linkage([0, 0.5, 0.5])[:, 2].tolist() == [0, 0.5, 0.5]


@given(forests(complete=True))
def test_scipy_takes_a_linkage_and_means_the_same_tree(tree):
    if tree.num_leaves == 1:
        return
    matrix = tree.to_linkage()
    assert hierarchy.is_valid_linkage(matrix, throw=True)
    assert hierarchy.is_monotonic(matrix)
    assert MergeTree.from_linkage(matrix) == tree
    drawn = hierarchy.dendrogram(matrix, no_plot=True)
    inside = str(tree).replace("(", "").replace(")", "").split(", ")
    assert drawn["ivl"] == inside  # leaves from left to right: the order within pairs is kept
    nodes = hierarchy.to_tree(matrix, rd=True)[1]
    for node, clade in zip(nodes[tree.num_leaves :], tree.clades(), strict=True):
        assert set(node.pre_order()) == clade


def test_scipys_own_linkage_is_read():
    matrix = hierarchy.linkage(np.array([[0.0], [10.0], [1.0]]), "single")
    assert MergeTree.from_linkage(matrix).clades() == [{0, 2}, {0, 1, 2}]


@pytest.mark.parametrize(
    ("heights", "sentence"),
    [
        ([1, 2], r"shape \(3,\), but have \(2,\)"),
        ([1, 2, np.nan], "finite"),
        ([-1, 2, 3], "the least is -1"),
        ([2, 1, 3], "merge 1 is at 1 over a child at 2"),
    ],
)
def test_heights_that_cannot_be_drawn_are_refused(heights, sentence):
    with pytest.raises(ValueError, match=sentence):
        CATERPILLAR.to_linkage(heights)


def test_heights_may_fall_between_merges_that_do_not_touch():
    tree = MergeTree([[0, 1], [2, 3], [4, 5]], 4)
    assert hierarchy.is_valid_linkage(tree.to_linkage([2, 1, 2]), throw=True)


def test_only_a_whole_tree_of_two_tokens_or_more_is_a_linkage():
    for tree in (FOREST, MergeTree([], 1)):
        with pytest.raises(ValueError, match="whole tree over at least 2 tokens"):
            tree.to_linkage()


@pytest.mark.parametrize(
    ("matrix", "sentence"),
    [
        (np.empty((0, 4)), "shape"),
        ([[0, 1, 1]], r"shape \(n - 1, 4\)"),
        ([[0, 0.5, 1, 2]], "whole"),
        ([[0, 1, 1, 2], [0, 2, 2, 3]], "node 0, which was merged before"),
    ],
)
def test_what_is_no_linkage_is_refused(matrix, sentence):
    with pytest.raises(ValueError, match=sentence):
        MergeTree.from_linkage(matrix)


# ---------------------------------------------------------------- networkx and text, back


@given(forests(), st.randoms(use_true_random=False))
def test_a_graph_comes_back_the_same_however_it_is_stored(tree, random):
    graph = tree.to_networkx()
    nodes, edges = list(graph.nodes), list(graph.edges(data=True))
    random.shuffle(nodes)
    random.shuffle(edges)
    shuffled = networkx.DiGraph()
    shuffled.add_nodes_from(nodes)
    shuffled.add_edges_from(edges)
    assert MergeTree.from_networkx(shuffled) == tree


@pytest.mark.parametrize(
    ("edges", "sentence"),
    [
        ([("a", "b", 0)], r"0 to 1, but are \['a', 'b'\]"),
        ([(2, 0, 0), (2, 1, 0)], r"node 2 must have children of order 0 and 1.*\[0, 0\]"),
        ([(2, 0, 0), (2, 1, None)], r"order \[0, None\]"),
        ([(3, 0, 0), (3, 1, 1), (3, 2, 1)], "node 3"),
        ([(0, 1, 0), (0, 2, 1)], "node 0 must have no children"),
        ([(3, 0, 0), (3, 1, 1), (4, 1, 0), (4, 2, 1)], "node 1, which was merged before"),
        ([(2, 0, 0), (2, 3, 1), (3, 1, 0), (3, 2, 1)], "merge 0 joins node 3"),
    ],
)
def test_a_graph_that_is_no_forest_is_refused(edges, sentence):
    graph = networkx.DiGraph()
    for parent, child, order in edges:
        graph.add_edge(parent, child, order=order)
    with pytest.raises(ValueError, match=sentence):
        MergeTree.from_networkx(graph)


@given(forests())
def test_text_comes_back_with_its_merges_numbered_from_the_left(tree):
    back = MergeTree.from_text(str(tree))
    assert str(back) == str(tree)
    assert set(back.clades()) == set(tree.clades())
    assert MergeTree.from_text(str(back)) == back


def test_a_line_may_hold_several_trees():
    assert MergeTree.from_text("2 | 4 | (0, (3, 1))") == MergeTree([[3, 1], [0, 5]], 5)
    assert MergeTree.from_text(" (1,0)|2 ") == MergeTree([[1, 0]], 3)


@pytest.mark.parametrize(
    "text", ["", "|", "0 |", "| 0", "0 1", "0 | 2", "(0 | 1)", "((0, 1) | 2", "(0, 1)) | 2", "a"]
)
def test_text_that_is_no_forest_is_refused(text):
    with pytest.raises(ValueError, match=r"tree is one node|merge is a pair|leaves must|leaf is"):
        MergeTree.from_text(text)


def test_newick_holds_one_tree():
    with pytest.raises(ValueError, match="leaf"):
        MergeTree.from_newick("0 | 1")


# ---------------------------------------------------------------- clades


@given(forests(), st.randoms(use_true_random=False))
def test_clades_in_any_order_come_back_as_the_same_forest(tree, random):
    clades = [list(clade) for clade in tree.clades()]
    random.shuffle(clades)
    again = MergeTree.from_clades(clades, tree.num_leaves)
    assert set(again.clades()) == set(tree.clades())
    assert len(again.merges) == len(tree.merges)
    sizes = [len(clade) for clade in again.clades()]
    assert sizes == sorted(sizes)


def test_the_child_with_the_lowest_token_comes_first():
    tree = MergeTree.from_clades([{0, 1, 2}, {2, 1}], 3)
    assert tree.nested() == (0, (1, 2))


@pytest.mark.parametrize(
    ("clades", "sentence"),
    [
        ([{0, 1, 2}], r"clade \[0, 1, 2\] must be two .* \[\[0\], \[1\], \[2\]\]"),
        ([{0, 1}, {1, 2}], r"clade \[1, 2\] must be two .* \[\[0, 1\], \[2\]\]"),  # they overlap
        ([{0, 1}, {0, 1}], r"clade \[0, 1\] must be two"),
        ([{0}], r"clade \[0\] must be two"),
        ([set()], r"clade \[\] must be two"),
        ([{1, 3}], "leaves are 0 to 2"),
    ],
)
def test_clades_that_make_no_binary_forest_are_refused(clades, sentence):
    with pytest.raises(ValueError, match=sentence):
        MergeTree.from_clades(clades, 3)
