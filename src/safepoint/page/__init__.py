"""The page of ``safepoint report``: what a run's directory tells, as one file of HTML that needs nothing else.

``gather`` reads the directory, ``drift`` the weights; ``data``, ``tree``, ``charts``, ``bars`` and ``heat`` are pure;
``html`` has it all put together by the templates in ``assets``, and ``file`` writes it.
"""
