package bench;

import java.util.List;

/**
 * An order.placed event. Amounts are doubles, though BigDecimal would be idiomatic here: the cheaper type gives this
 * peer the benefit of the doubt. So does a timestamp that stays text.
 */
record Envelope(
        String eventId,
        String eventType,
        String aggregateId,
        String aggregateType,
        String timestamp,
        int version,
        Metadata metadata,
        Payload payload) {

    record Metadata(String correlationId, String causationId, String userId) {}

    record Payload(String orderId, String customerId, List<Item> items, Money total) {}

    record Item(String productId, int quantity, Money price) {}

    record Money(double amount, String currency) {}
}
