// An episode: what the page was told about one sample, and what follows from it.
//
// Nodes are numbered as in scipy's linkage: the tokens are 0 .. n-1, merge t makes node n + t.
// A step is a number of merges made, 0 .. n-1.

class Episode {
  constructor(sample) {
    this.name = sample.name;
    this.title = sample.title;
    this.names = sample.names; // of all nodes: numbers, or what the data calls its tokens
    this.kind = sample.kind;
    this.tokens = rowsOf(sample.tokens, sample.dim);
    this.merges = sample.merges;
    this.errors = sample.errors;
    this.charges = sample.charges;
    this.considered = sample.considered;
    this.size = this.tokens.length;
    this.last = this.merges.length;
    this.measure = sample.measure; // what its errors are
    this.decodes = sample.start !== null;
    this._start = rowsOf(sample.start ?? [], sample.dim);
    this._changes = sample.changes.map((values) => rowsOf(values, sample.dim));

    /** The tokens under each node, in ascending order. */
    this.leaves = this.tokens.map((_, leaf) => [leaf]);
    for (const [first, second] of this.merges) {
      const both = [...this.leaves[first], ...this.leaves[second]];
      this.leaves.push(both.sort((a, b) => a - b));
    }
  }

  /** What the tokens under a node are called, in one line. */
  familyNames(node) {
    return this.leaves[node].map((leaf) => this.names[leaf]).join(", ");
  }

  /** The node that merge t makes. */
  parent(merge) {
    return this.size + merge;
  }

  /** The merge that uses up each node, by node; undefined for the root. */
  get usedBy() {
    const used = [];
    this.merges.forEach((pair, merge) => pair.forEach((node) => (used[node] = merge)));
    return used;
  }

  /** The nodes that no merge has used yet, in ascending order. */
  active(step) {
    const used = new Set(this.merges.slice(0, step).flat());
    return [...Array(this.size + step).keys()].filter((node) => !used.has(node));
  }

  /** The ordered pair that is merged next; null after the last merge. */
  next(step) {
    return step < this.last ? this.merges[step] : null;
  }

  /** A node, and every node under it. */
  family(node) {
    const below = node < this.size ? [] : this.merges[node - this.size];
    return [node, ...below.flatMap((child) => this.family(child))];
  }

  /** The tokens decoded from the nodes that are active at a step. */
  reconstruction(step) {
    const decoded = [...this._start];
    for (let merge = 0; merge < step; merge++) {
      this.leaves[this.parent(merge)].forEach((leaf, index) => {
        decoded[leaf] = this._changes[merge][index];
      });
    }
    return decoded;
  }

  /** One line, as in "((0, 1), 2) | 3"; the trees of a forest in the order of their roots. */
  text(step) {
    const texts = this.tokens.map((_, leaf) => this.names[leaf]);
    for (const [first, second] of this.merges.slice(0, step)) {
      texts.push(`(${texts[first]}, ${texts[second]})`);
    }
    return this.active(step).map((node) => texts[node]).join(" | ");
  }
}

function rowsOf(flat, width) {
  return Array.from({ length: flat.length / width }, (_, row) =>
    flat.slice(row * width, (row + 1) * width),
  );
}
