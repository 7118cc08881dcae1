"""What a report says of each kind of target: metrics.json and predictions.csv in, sections of a page out."""
