"""Two sides of runs in, one exit code out: did it get worse?"""
