"""The way of one request: check, hold, draw, keep, charge.

    routing    the candidates in order, and what is adjusted for each
    admit      admit(): one short transaction; the Generation row and the hold exist before
               anybody draws
    story      complete(): draw and keep, nothing open meanwhile; then charge, one short
               transaction: pictures, charge and result together, or the hold released and the
               error written down
    abandoned  what dead processes left behind is settled

What a row says is put there only by the transaction that commits it: each works on a copy, and
`Started` gets the copy when it is committed. Where that broke, the database is asked what it has.
"""
