"""Money for staff: accounts, ledger, meter events, invoices, differences."""
