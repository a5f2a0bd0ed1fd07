"""What is kept in the model: scores, schedules, masks, gates, structure, cost. Knows torch alone."""
