"""What every training stage shares: launch, models, callbacks, tracking."""
