"""Ensembles: models of one data set whose outputs are averaged (paper section 3.1).

In: a recipe, its seeds and variants, and finished runs. Steps: plan the runs to train; read the
members' predictions on the same clips; choose among them, if asked; average them. Out: the mean as
predictions, `ensemble.json`, and a table.

N clips, C classes, M members.
"""
