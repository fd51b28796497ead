"""Sets in a pipeline of scikit-learn: digits as sets of sixteen patches, and which digit it is."""

import sys

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from agents import HierarchicalTokenMerger

merges = int(sys.argv[1]) if len(sys.argv) > 1 else 200_000
torch.set_num_threads(1)  # fastest for networks of this size

digits = load_digits()
patches = digits.images.reshape(-1, 4, 2, 4, 2).transpose(0, 1, 3, 2, 4).reshape(-1, 16, 4)
places = np.stack(np.meshgrid(range(4), range(4)), axis=-1).reshape(16, 2)
sets = np.concatenate([np.broadcast_to(places, (len(patches), 16, 2)), patches], axis=2)
train, test, labels, held_out = train_test_split(sets, digits.target, random_state=0)

merger = HierarchicalTokenMerger("balanced_sorted", merges=merges)
pipeline = make_pipeline(merger, StandardScaler(), LogisticRegression(max_iter=2000))
search = GridSearchCV(pipeline, {"hierarchicaltokenmerger__embedding_dim": [8, 32]}, cv=2)
search.fit(train, labels)

best = search.best_estimator_[0]
print("width", best.embedding_dim_, " reconstruction error", round(-best.score(test), 3))
print("digits told apart", round(search.score(test, held_out), 3))
print("a tree", best.trees(test[:1])[0].newick())
