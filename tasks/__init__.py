"""Pictures with questions whose answers are known: drawn tasks, easy-VQA and the user's own JSONL files."""
