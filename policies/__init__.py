"""What learns to choose plans: group PPO on the sequential problem, and the rivals that it has to beat."""
