# SPDX-License-Identifier: Apache-2.0
"""Checks that the tests of other packages run on what they bring: one call in one test function.

.. code-block:: python

   from art_medical.testing import check_card

   def test_card():
       check_card("src/my_package/models/my-model")
"""

from art_medical.testing.cards import check_card

__all__ = ["check_card"]
