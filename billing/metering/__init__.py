"""Metering: consumption in the ledger becomes meter events, sent until Stripe has them.

    pending -> sending -> accepted -> confirmed      what goes well; reconciliation confirms
    sending -> pending                               Stripe was busy: it was not counted
    sending -> sending                               nobody knows: the same again after the lease
    sending -> uncertain -> accepted | pending       too old to ask by sending; Stripe's sums decide
    sending -> rejected, pending -> unbilled         a person is needed

A lane is one organization and one price version; of prices that share an item it is the shared one,
which counts their money (`billing.stripe.sharing`). At most one event of a lane may have an unknown
outcome, which the database keeps (`one_unknown_per_lane`): two could not be told apart by sums.

`freeze`, `carry`, `send` and `doubt` are the order of an event's life; `sink` is where it is
counted.
"""
