"""Generation: mixtures over roots, unmerging into new samples, and measures of their quality."""
