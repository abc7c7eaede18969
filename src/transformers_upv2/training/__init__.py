"""Multi-task training: unmixed sampling, Task-Balanced Gradient Normalization, the Trainer."""
