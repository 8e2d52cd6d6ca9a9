"""Running many episodes: batched workers, Ray actors as a vectorised environment, the replay table."""
