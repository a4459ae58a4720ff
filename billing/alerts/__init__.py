"""Alerts to an organization, once each: by e-mail to people, and signed to its own software.

    raise_alert() or scan() -> a Notification row -> deliver_due() -> e-mail, POST

A row is written in the transaction that decides it and delivered later, each channel once. What a
crash hides is done again: between a delivery and its mark, a mail can be sent a second time, and a
POST too, with the same id.
"""
