"""Testing compiled world models: small generated ones, each run before and after the passes against float64."""
