"""Episodes of fixed policies with the exact probability of every merge.

A fixed policy does one thing, and says nothing about how a policy that does anything else would
fare. So what demonstrates is a stated stochastic version of it, which can make every merge, and the
importance weights of its episodes are exact:

* ``nearest`` and ``nearest_sorted``: at every step a softmax over the negative distances of the
  centroids of the standardised coordinates (:class:`SoftNearest`).
* every other fixed policy: with probability ``1 - epsilon`` an episode follows the policy's plan,
  with probability ``epsilon`` all of its merges are uniformly random (:class:`PlanMixture`).
"""

from agents.demonstrations.behaviour import Demonstrator

__all__ = ["Demonstrator"]
