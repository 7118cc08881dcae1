"""The heads: from a bag of patch features to a slide's output. May import tasks, cohort and below."""
