"""Learners behind the interface of scikit-learn."""
