"""A grader for each exercise: functions that take the student's file and raise Wrong with one sentence."""
