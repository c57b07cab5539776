"""Error budgets: how far a result may be from the exact one, and the measurements that turn it into thresholds."""
