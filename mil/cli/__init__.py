"""The commands, one a file: parse, load the settings, one call. torch is imported after parsing."""
