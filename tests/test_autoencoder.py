"""By-level encoding and decoding against the plain loop, padding, weights files, policies."""

from __future__ import annotations

import json

import oracle
import pytest
import torch
from conftest import small_autoencoder
from hypothesis import given
from hypothesis import strategies as st
from memory import Largest
from oracle import PlainForest, batched, forests, random_tree
from safetensors.torch import save_file

from htm_env.autoencoder import BLOCK, HTMAutoencoder, ResidualNetwork, merge_with
from htm_env.forest import action_mask

CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def drawn_tokens(drawn, token_dim: int = 3, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(*drawn.present.shape, token_dim, generator=generator)
    return tokens * drawn.present[..., None]


def reconstruction(autoencoder, tokens, drawn) -> torch.Tensor:
    encoding = autoencoder.encode(tokens, drawn.present, drawn.merges)
    return autoencoder.decode(encoding.population, drawn.merges, drawn.present)


def gradients(autoencoder, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    """What the loss gives every weight; the leaf classifier takes no part."""
    autoencoder.zero_grad()
    loss.backward()
    found = {
        name: weight.grad.clone()
        for name, weight in autoencoder.named_parameters()
        if weight.grad is not None
    }
    assert {name.split(".")[0] for name in found} <= {"lifter", "merger", "unmerger", "unlifter"}
    return found


def assert_same_gradients(left: dict, right: dict) -> None:
    """Equal to 1e-5 of the largest entry; a weight without a gradient counts as zero."""
    for name in left.keys() | right.keys():
        there = left.get(name, torch.zeros(()))
        here = right.get(name, torch.zeros_like(there))
        scale = max(1.0, float(here.abs().max()))
        torch.testing.assert_close(
            there.expand_as(here) / scale, here / scale, msg=lambda m, n=name: f"{n}: {m}", **CLOSE
        )


# ---------------------------------------------------------------- by level = the plain loop


@given(forests(), st.integers(0, 9))
def test_encoding_by_level_equals_the_plain_loop(drawn, seed):
    autoencoder = small_autoencoder(3, seed=seed)
    tokens = drawn_tokens(drawn, seed=seed)
    encoding = autoencoder.encode(tokens, drawn.present, drawn.merges)
    nodes = torch.zeros_like(encoding.nodes)
    population = torch.zeros_like(encoding.population)
    for row, plain in enumerate(drawn.plain):
        states = oracle.encode(autoencoder, tokens[row, : plain.n], plain)
        nodes[row, : len(states)] = torch.stack(states)
        for slot, node in plain.slots.items():
            population[row, slot] = states[node]
    torch.testing.assert_close(encoding.nodes, nodes, **CLOSE)
    torch.testing.assert_close(encoding.population, population, **CLOSE)
    assert encoding.num_active.tolist() == [len(plain.slots) for plain in drawn.plain]


@given(forests(), st.integers(0, 9))
def test_decoding_by_level_equals_the_plain_loop(drawn, seed):
    """From states that no encoder made, so that decoding is tested alone."""
    autoencoder = small_autoencoder(3, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    population = torch.randn(*drawn.present.shape, 5, generator=generator)
    decoded = autoencoder.decode(population, drawn.merges, drawn.present)
    expected = torch.zeros_like(decoded)
    for row, plain in enumerate(drawn.plain):
        active = {node: population[row, slot] for slot, node in plain.slots.items()}
        expected[row, : plain.n] = torch.stack(oracle.decode(autoencoder, active, plain))
    torch.testing.assert_close(decoded, expected, **CLOSE)


@given(forests(smallest=2), st.integers(0, 9))
def test_gradients_by_level_equal_those_of_the_plain_loop(drawn, seed):
    autoencoder = small_autoencoder(3, seed=seed)
    tokens = drawn_tokens(drawn, seed=seed).requires_grad_()
    by_level = gradients(
        autoencoder, (reconstruction(autoencoder, tokens, drawn) - tokens.detach()).square().sum()
    )
    of_tokens, tokens.grad = tokens.grad, None
    losses = [
        (
            oracle.reconstruct(autoencoder, tokens[row, : plain.n], plain)
            - tokens[row, : plain.n].detach()
        )
        .square()
        .sum()
        for row, plain in enumerate(drawn.plain)
    ]
    by_step = gradients(autoencoder, sum(losses))
    assert any(name.startswith("lifter.") for name in by_step)
    assert_same_gradients(by_level, by_step)
    assert_same_gradients({"tokens": of_tokens}, {"tokens": tokens.grad})


def test_a_deep_chain_and_a_wide_tree_in_one_batch():
    """Sixteen tokens: the chain has 15 levels of merges, the balanced tree 4."""
    chain, wide = PlainForest(16), PlainForest(16)
    for other in range(1, 16):
        chain.merge(0, other)
    for gap in (1, 2, 4, 8):
        for slot in range(0, 16, 2 * gap):
            wide.merge(slot, slot + gap)
    drawn = batched([chain, wide], slots=16)
    autoencoder, tokens = small_autoencoder(2), drawn_tokens(drawn, token_dim=2)
    expected = [
        oracle.reconstruct(autoencoder, tokens[row], plain)
        for row, plain in enumerate([chain, wide])
    ]
    torch.testing.assert_close(
        reconstruction(autoencoder, tokens, drawn), torch.stack(expected), **CLOSE
    )


def test_a_root_is_the_whole_sample_and_decodes_alone(autoencoder):
    drawn = batched([random_tree(n, torch.Generator().manual_seed(n)) for n in (2, 5)], slots=6)
    encoding = autoencoder.encode(drawn_tokens(drawn), drawn.present, drawn.merges)
    assert encoding.roots.shape == (2, 5)
    torch.testing.assert_close(encoding.roots[1], encoding.nodes[1, 8])  # the last of 9 nodes
    torch.testing.assert_close(
        autoencoder.decode(encoding.roots, drawn.merges, drawn.present),
        autoencoder.decode(encoding.population, drawn.merges, drawn.present),
    )


def test_a_forest_of_several_trees_has_no_root(autoencoder):
    drawn = batched([PlainForest(3)], slots=3)
    encoding = autoencoder.encode(drawn_tokens(drawn), drawn.present, drawn.merges)
    with pytest.raises(ValueError, match="sample 0 has 3 trees; expected one root"):
        _ = encoding.roots
    with pytest.raises(ValueError, match="1 roots for 3 trees"):
        autoencoder.decode(encoding.population[:, 0], drawn.merges, drawn.present)


# ---------------------------------------------------------------- padding


def test_padding_and_company_change_nothing(autoencoder):
    generator = torch.Generator().manual_seed(3)
    tree = random_tree(5, generator)
    others = [random_tree(n, generator) for n in (9, 2, 7)]
    alone, wide = batched([tree], slots=5), batched([*others, tree], slots=12)
    tokens = torch.randn(1, 5, 3, generator=generator)
    padded = torch.randn(4, 12, 3, generator=generator) * wide.present[..., None]
    padded[3, :5] = tokens[0]

    def seen(tokens, drawn, row):
        encoding = autoencoder.encode(tokens, drawn.present, drawn.merges)
        decoded = autoencoder.decode(encoding.population, drawn.merges, drawn.present)
        loss = (decoded[row, :5] - tokens[row, :5]).square().mean()
        return encoding, decoded, gradients(autoencoder, loss)

    encoding, decoded, grads = seen(tokens, alone, 0)
    wide_encoding, wide_decoded, wide_grads = seen(padded, wide, 3)
    torch.testing.assert_close(wide_encoding.nodes[3, :9], encoding.nodes[0], **CLOSE)
    torch.testing.assert_close(wide_encoding.population[3, :5], encoding.population[0], **CLOSE)
    torch.testing.assert_close(wide_decoded[3, :5], decoded[0], **CLOSE)
    assert_same_gradients(wide_grads, grads)
    absent = ~wide.present
    assert not wide_decoded[absent].any()
    assert not wide_encoding.population[absent].any()


def test_what_stands_in_empty_slots_is_never_read(autoencoder):
    generator = torch.Generator().manual_seed(0)
    drawn = batched([random_tree(3, generator)], slots=6)
    tokens = drawn_tokens(drawn)
    garbage = tokens.masked_fill(~drawn.present[..., None], float("nan"))
    assert torch.equal(
        reconstruction(autoencoder, tokens, drawn), reconstruction(autoencoder, garbage, drawn)
    )


# ---------------------------------------------------------------- policies


def random_policy(observation, generator):
    mask = action_mask(observation["active"].bool()).float()
    finished = mask.sum(1, keepdim=True) == 0
    return torch.multinomial(mask + finished, 1, generator=generator).squeeze(1)


def chain_policy(observation, generator):
    """Merge slot 0 with the first other active slot."""
    second = observation["active"][:, 1:].long().argmax(1) + 1
    return second - 1


def test_reconstructing_with_a_policy_follows_its_merges(autoencoder):
    drawn = batched([PlainForest(4), PlainForest(2)], slots=5)
    tokens = drawn_tokens(drawn)
    for forest in drawn.plain:
        for other in range(1, forest.n):
            forest.merge(0, other)
    decoded = autoencoder.reconstruct(tokens, drawn.present, chain_policy)
    for row, plain in enumerate(drawn.plain):
        expected = oracle.reconstruct(autoencoder, tokens[row, : plain.n], plain)
        torch.testing.assert_close(decoded[row, : plain.n], expected.detach(), **CLOSE)


def test_the_policy_sees_the_current_embeddings(autoencoder):
    """Its ``tokens`` at every step are the population of the forest so far."""
    drawn = batched([PlainForest(4), PlainForest(3)], slots=4)
    tokens = drawn_tokens(drawn)
    seen = []

    def spying(observation, generator):
        seen.append({key: value.clone() for key, value in observation.items()})
        return random_policy(observation, generator)

    generator = torch.Generator().manual_seed(0)
    forest = merge_with(
        spying,
        autoencoder.standardise(tokens),
        drawn.present,
        autoencoder.lifter,
        autoencoder.merger,
        generator,
    )
    assert forest.num_active.tolist() == [1, 1]
    assert len(seen) == 3
    for step, observation in enumerate(seen):
        merges = forest.merges.clone()
        merges[:, step:] = -1
        encoding = autoencoder.encode(tokens, drawn.present, merges)
        torch.testing.assert_close(observation["tokens"], encoding.population, **CLOSE)
        assert observation["leaf_counts"].sum(1).tolist() == [4, 3]
        assert torch.equal(observation["active"].bool(), observation["leaf_counts"] > 0)


def test_a_random_policy_depends_on_its_generator_alone(autoencoder):
    drawn = batched([PlainForest(6)], slots=6)
    tokens = drawn_tokens(drawn)

    def with_seed(seed: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        return autoencoder.reconstruct(tokens, drawn.present, random_policy, generator)

    torch.manual_seed(0)
    first = with_seed(1)
    torch.manual_seed(1)
    assert torch.equal(with_seed(1), first)
    assert not torch.equal(with_seed(2), first)


# ---------------------------------------------------------------- weights


def test_the_same_seed_gives_the_same_weights():
    state = torch.get_rng_state()
    first, again, other = (small_autoencoder(3, seed=seed) for seed in (0, 0, 1))
    assert first.weights_hash() == again.weights_hash() != other.weights_hash()
    assert torch.equal(torch.get_rng_state(), state)  # the global generator is left alone


def test_the_hash_changes_with_any_weight_or_statistic(autoencoder):
    hashes = {autoencoder.weights_hash()}
    for name, tensor in autoencoder.state_dict().items():
        tensor.view(-1)[-1] += 0.5
        assert autoencoder.weights_hash() not in hashes, name
        hashes.add(autoencoder.weights_hash())
    assert all(len(digits) == 12 and int(digits, 16) >= 0 for digits in hashes)


@pytest.mark.parametrize("architecture", ["residual", "mlp"])
def test_saving_and_loading(tmp_path, architecture):
    saved = HTMAutoencoder(3, 5, 16, architecture)
    saved.set_statistics(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([4.0, 5.0, 6.0]))
    path = tmp_path / "new folder" / "weights.safetensors"
    saved.save(path)
    loaded = HTMAutoencoder.load(path)
    assert loaded.weights_hash() == saved.weights_hash()
    assert loaded.config == saved.config
    assert loaded.token_std.tolist() == [4.0, 5.0, 6.0]
    assert [file.name for file in path.parent.iterdir()] == [path.name]  # nothing half-written


def test_loading_leaves_the_global_generator_alone(tmp_path, autoencoder):
    autoencoder.save(tmp_path / "weights.safetensors")
    state = torch.get_rng_state()
    HTMAutoencoder.load(tmp_path / "weights.safetensors")
    assert torch.equal(torch.get_rng_state(), state)


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch, autoencoder):
    path = tmp_path / "weights.safetensors"
    autoencoder.save(path)
    before = path.read_bytes()

    def interrupted(*args):
        raise OSError("the disk is full")

    monkeypatch.setattr("os.replace", interrupted)
    with pytest.raises(OSError, match="disk is full"):
        small_autoencoder(3, seed=1).save(path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_loading_a_file_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no saved autoencoder at .*gone\.safetensors"):
        HTMAutoencoder.load(tmp_path / "gone.safetensors")


def _config(**changes) -> dict[str, str]:
    config = {"token_dim": 3, "embedding_dim": 5, "hidden_dim": 16, "architecture": "residual"}
    return {"htm_autoencoder": json.dumps(config | changes)}


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda path, state: path.write_bytes(b""), id="empty"),
        pytest.param(lambda path, state: path.write_bytes(b"not weights at all"), id="text"),
        pytest.param(
            lambda path, state: path.write_bytes(path.read_bytes()[:-100]), id="truncated"
        ),
        pytest.param(lambda path, state: save_file(state, path), id="no metadata"),
        pytest.param(
            lambda path, state: save_file(state, path, {"htm_autoencoder": "{"}), id="no JSON"
        ),
        pytest.param(
            lambda path, state: save_file(state, path, _config(hidden_dim=8)), id="other widths"
        ),
        pytest.param(
            lambda path, state: save_file(state, path, _config(depth=2)), id="unknown option"
        ),
        pytest.param(
            lambda path, state: save_file(state, path, _config(architecture="new")),
            id="unknown architecture",
        ),
        pytest.param(
            lambda path, state: save_file(dict(list(state.items())[1:]), path, _config()),
            id="a weight missing",
        ),
    ],
)
def test_loading_a_file_that_is_not_an_autoencoder_names_it(tmp_path, autoencoder, spoil):
    path = tmp_path / "spoiled.safetensors"
    autoencoder.save(path)
    spoil(path, autoencoder.state_dict())
    with pytest.raises(ValueError, match=r"spoiled\.safetensors"):
        HTMAutoencoder.load(path)


# ---------------------------------------------------------------- wrong arguments


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"token_dim": 0}, "token_dim is 0: expected a whole number"),
        ({"token_dim": 2, "embedding_dim": -1}, "embedding_dim is -1: expected a whole number"),
        ({"token_dim": 2, "hidden_dim": 0}, "hidden_dim is 0: expected a whole number"),
        (
            {"token_dim": 2, "architecture": "deep"},
            "'deep'; choose from .'mlp', 'posed', 'resid",
        ),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        HTMAutoencoder(**arguments)


def test_tokens_of_another_dimension(autoencoder):
    drawn = batched([PlainForest(2)], slots=2)
    with pytest.raises(ValueError, match=r"tokens have 4 coordinates; .* expects 3"):
        autoencoder.encode(torch.zeros(1, 2, 4), drawn.present, drawn.merges)


def test_merges_that_are_no_forest(autoencoder):
    drawn = batched([PlainForest(2)], slots=2)
    with pytest.raises(ValueError, match="merges of sample 0 are not a forest over its 2 tokens"):
        autoencoder.encode(drawn_tokens(drawn), drawn.present, torch.tensor([[[0, 0]]]))
    with pytest.raises(ValueError, match="merges of sample 0 are not a forest over its 2 tokens"):
        autoencoder.decode(torch.zeros(1, 5), torch.tensor([[[0, 2]]]), drawn.present)


def test_merges_without_padding_are_padded(autoencoder):
    """``(B, 1, 2)`` merges of four slots: the missing rows count as no merge."""
    drawn = batched([PlainForest(3)], slots=4)
    tokens = drawn_tokens(drawn)
    short = torch.tensor([[[2, 0]]])
    padded = torch.tensor([[[2, 0], [-1, -1], [-1, -1]]])
    encoding = autoencoder.encode(tokens, drawn.present, short)
    torch.testing.assert_close(
        encoding.nodes, autoencoder.encode(tokens, drawn.present, padded).nodes
    )
    assert encoding.num_active.tolist() == [2]


def test_tokens_that_leave_a_gap_in_the_slots_are_refused(autoencoder):
    present = torch.tensor([[True, True, True, False], [True, False, True, True]])
    tokens = torch.zeros(2, 4, autoencoder.token_dim)
    merges = torch.tensor([[[0, 1]], [[0, 1]]])
    for use in (
        lambda: autoencoder.encode(tokens, present, merges),
        lambda: autoencoder.decode(torch.zeros(2, 4, autoencoder.embedding_dim), merges, present),
        lambda: autoencoder.reconstruct(tokens, present, lambda seen, generator: None),
    ):
        with pytest.raises(ValueError, match=r"sample 1 leave a gap.*\[1, 0, 1, 1\]"):
            use()


@pytest.mark.parametrize("shape", [(8,), (2, 3), (2, 5, 8), (3, 8)])
def test_roots_of_another_shape(shape):
    autoencoder = HTMAutoencoder(2, embedding_dim=8, hidden_dim=4)
    merges = torch.tensor([[[0, 1]], [[0, 1]]])
    with pytest.raises(ValueError, match=r"expected \(2, 8\), or \(2, 2, 8\)"):
        autoencoder.decode(torch.zeros(shape), merges, torch.ones(2, 2, dtype=torch.bool))


@pytest.mark.parametrize("action", [-1, 6, 10**6])
def test_a_policy_outside_the_action_space_is_named(autoencoder, action):
    tokens = torch.zeros(1, 3, autoencoder.token_dim)
    with pytest.raises(ValueError, match=f"policy action {action} is not a merge of sample 0"):
        autoencoder.reconstruct(
            tokens,
            torch.ones(1, 3, dtype=torch.bool),
            lambda seen, generator: torch.tensor([action]),
        )


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (-1, r"policy action -1 is not a merge of sample 0: it is not in Discrete\(9\)"),
        (9, r"policy action 9 is not a merge of sample 0: it is not in Discrete\(9\)"),
        (2, r"of sample 0: it merges slot 0 with its candidate 2, but .* \[[12], [12], -1\]"),
    ],
)
def test_a_policy_that_takes_no_candidate_is_named(autoencoder, action, message):
    tokens = torch.arange(9.0).view(1, 3, 3)
    present = torch.ones(1, 3, dtype=torch.bool)
    with pytest.raises(ValueError, match=message):
        autoencoder.reconstruct(
            tokens, present, lambda seen, generator: torch.tensor([action]), candidates=3
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"candidates": 0}, "k is 0: expected a whole number from 1 to 65536"),
        (
            {"candidates": 2, "neighbours": "all"},
            r"'all'; choose from \['embeddings', 'centroids'\]",
        ),
    ],
)
def test_wrong_candidates_to_reconstruct_with(autoencoder, options, message):
    tokens, present = torch.zeros(1, 3, 3), torch.ones(1, 3, dtype=torch.bool)
    with pytest.raises(ValueError, match=message):
        autoencoder.reconstruct(tokens, present, chain_policy, **options)


def test_many_rows_without_gradients_go_through_a_network_in_blocks():
    rows = 2 * BLOCK + 2
    network, values = ResidualNetwork(3, 8, 2), torch.randn(rows, 3)
    whole = network(values).detach()
    with Largest() as largest, torch.no_grad():
        torch.testing.assert_close(network(values[:10]), whole[:10])
        largest.size = 0
        blocks = network(values)
    assert largest.size == 8 * BLOCK  # the hidden units of one block
    torch.testing.assert_close(blocks, whole)
    with torch.no_grad():
        torch.testing.assert_close(network(values.view(2, -1, 3)), whole.view(2, -1, 2))
        assert network(values[:0]).shape == (0, 2)
    assert network(values).requires_grad
