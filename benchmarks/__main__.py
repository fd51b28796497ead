"""All throughput benchmarks: ``python -m benchmarks``."""

from benchmarks import environment, generation, joint_training

environment.main()
joint_training.main()
generation.main()
