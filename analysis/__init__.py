"""What judges a policy: fronts against the hull of fixed plans, resampling tests, the board and the final table."""
