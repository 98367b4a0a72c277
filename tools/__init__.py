"""What the programs stand on: errors, progress and writing (cli), checked input (schema), people's files (reading), tables
and pictures (report, drawing)."""
