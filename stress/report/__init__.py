"""What is told of trials: ``record`` in, something to read out.

::

    figures  flat named numbers, and the file of ``--json``    live   a table while a trial runs
    bins     many questions and looks, in few spans of time    page   one HTML page of them all
    charts   what is drawn, and the sentence under it          canvas how matplotlib draws it
    svg      what matplotlib writes, made small
    scene    one moment of a trial, as ``live`` shows it
    words    how numbers, times and errors are said            marks  how each fault is marked
"""
