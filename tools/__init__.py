"""What the programs stand on: errors, progress and writing (cli), checked input (inputs), people's files (reading), a
comparison's folder (runs), tables and pictures (report)."""
