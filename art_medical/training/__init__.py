# SPDX-License-Identifier: Apache-2.0
"""Training of the zoo's models from recipes: seeded, resumable, on the splits ``train`` and ``val`` only.

Scores on the test split are measured afterwards, by :mod:`art_medical.evaluation`.
"""
