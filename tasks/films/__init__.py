"""Videos with questions whose answers are known: some frames of something that happens, drawn on demand."""
