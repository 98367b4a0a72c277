"""What the programs stand on: errors and progress (cli), other files (reading), tables and pictures (report)."""
