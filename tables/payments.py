"""The table of payments."""

from domain.payments import Payment
from engine.declare.table import Table

PAYMENTS: Table[str, Payment] = Table("payments", Payment, help="the payment of every order, by order id")
