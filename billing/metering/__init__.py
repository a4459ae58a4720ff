"""From the ledger to Stripe's meters, in the order of an event's life:

freeze   entries of an hour that is over become one event
carry    the invoice that carries it
send     lane by lane, until Stripe has it
doubt    an unknown outcome, decided by Stripe's sums
sink     where usage is counted
"""
