"""Scale, and where patches lie and how their pixels are made. May import slides and jobs."""
