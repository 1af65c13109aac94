"""The projection of reconciliation: pieces and money as the events of stock and payments tell them, added up."""

from streams.engine.batch import Batches
from streams.engine.handlers import Handlers
from streams.engine.unit_of_work import UnitOfWork
from streams.envelope import Envelope
from streams.events.inventory import INVENTORY_TYPES, StockAdded, StockShipped
from streams.events.money import Money
from streams.events.payments import PAYMENT_TYPES, PaymentReceived, PaymentRefunded
from streams.service import Service
from streams.topics import INVENTORY_EVENTS, PAYMENT_EVENTS
from tables.reconciliation import PAYMENT_SUMS, STOCK_KEY, STOCK_SUMS, PaymentSums, StockSums

service = Service(
    "reconciliation", tables=(STOCK_SUMS, PAYMENT_SUMS), types=(*INVENTORY_TYPES, *PAYMENT_TYPES)
)  # fmt: skip
stock_handlers = Handlers()
payment_handlers = Handlers()


@service.agent(INVENTORY_EVENTS)
async def reconcile_stock(batches: Batches) -> None:
    """Keep the sums of pieces."""
    async for batch in batches:
        await batch.process(stock_handlers)


@service.agent(PAYMENT_EVENTS)
async def reconcile_payments(batches: Batches) -> None:
    """Keep the sums of money."""
    async for batch in batches:
        await batch.process(payment_handlers)


@stock_handlers.on(StockAdded)
def add_stocked(event: Envelope[StockAdded], work: UnitOfWork) -> None:
    """Count pieces that came onto the shelf, or that a stocktake took off it."""
    _add_pieces(work, StockSums(stocked=event.payload.quantity))


@stock_handlers.on(StockShipped)
def add_shipped(event: Envelope[StockShipped], work: UnitOfWork) -> None:
    """Count pieces that were sent away."""
    _add_pieces(work, StockSums(shipped=event.payload.quantity))


@payment_handlers.on(PaymentReceived)
def add_charged(event: Envelope[PaymentReceived], work: UnitOfWork) -> None:
    """Count money that was taken."""
    amount = event.payload.amount
    _add_money(work, amount, PaymentSums(charged=amount.amount))


@payment_handlers.on(PaymentRefunded)
def add_refunded(event: Envelope[PaymentRefunded], work: UnitOfWork) -> None:
    """Count money that was given back."""
    amount = event.payload.amount
    _add_money(work, amount, PaymentSums(refunded=amount.amount))


def _add_pieces(work: UnitOfWork, more: StockSums) -> None:
    before = work.get(STOCK_SUMS, STOCK_KEY)
    work.put(STOCK_SUMS, STOCK_KEY, more if before is None else before.plus(more))


def _add_money(work: UnitOfWork, amount: Money, more: PaymentSums) -> None:
    before = work.get(PAYMENT_SUMS, amount.currency)
    work.put(PAYMENT_SUMS, amount.currency, more if before is None else before.plus(more))
