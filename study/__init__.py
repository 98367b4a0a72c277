"""The methods compared on made-up worlds they were not tuned on: `python -m study`, explained in README.md here.

Reading order: design (what is compared, fixed before the first judged run), runs (one record a run), stats and analysis
(the measures), tables and figures (what the records say), __main__ (the program).
"""
