"""Lightning runs: recipes, command line, callbacks and schedules, shared by pretraining and classification."""
