"""The page of ``safepoint report``: what a run's directory tells, as one file of HTML that needs nothing else.

``gather`` reads the directory, ``drift`` the weights; ``data``, ``tree`` and ``charts`` are pure; ``html`` puts the page
together, and ``file`` writes it.
"""
