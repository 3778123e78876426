# SPDX-License-Identifier: Apache-2.0
"""Medical classifiers as ART estimators: input steps, network and head in one differentiable module."""
