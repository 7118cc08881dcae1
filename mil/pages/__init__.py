"""What pages are made of: style, tables, charts. Imports nothing of mil."""
