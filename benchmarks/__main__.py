"""All throughput benchmarks: ``python -m benchmarks``."""

from benchmarks import environment, joint_training

environment.main()
joint_training.main()
