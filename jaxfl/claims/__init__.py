"""Headlines of papers, each tested in the file named as its system; `zoo.find_claim` finds them.

"The plan" of a docstring is the check at desk scale that was written down before anything was measured.
"""
