package bench;

import java.util.Properties;
import java.util.Set;
import org.apache.kafka.clients.consumer.ConsumerConfig;
import org.apache.kafka.common.serialization.Serde;
import org.apache.kafka.common.serialization.Serdes;
import org.apache.kafka.streams.KafkaStreams;
import org.apache.kafka.streams.StreamsBuilder;
import org.apache.kafka.streams.StreamsConfig;
import org.apache.kafka.streams.Topology;
import org.apache.kafka.streams.errors.StreamsUncaughtExceptionHandler.StreamThreadExceptionResponse;
import org.apache.kafka.streams.kstream.Consumed;
import org.apache.kafka.streams.kstream.Produced;
import org.apache.kafka.streams.processor.api.FixedKeyProcessor;
import org.apache.kafka.streams.processor.api.FixedKeyProcessorContext;
import org.apache.kafka.streams.processor.api.FixedKeyProcessorSupplier;
import org.apache.kafka.streams.processor.api.FixedKeyRecord;
import org.apache.kafka.streams.state.KeyValueStore;
import org.apache.kafka.streams.state.StoreBuilder;
import org.apache.kafka.streams.state.Stores;

/** The orders job on Kafka Streams; see bench/systems.py for its environment. */
public final class OrdersJob {

    private static final String CUSTOMERS = "customers";

    private OrdersJob() {}

    public static void main(String[] args) {
        Topology topology = topology(environment("BENCH_SOURCE"), environment("BENCH_OUTPUT"));
        KafkaStreams streams = new KafkaStreams(topology, settings(environment("BENCH_GUARANTEE")));
        streams.setUncaughtExceptionHandler(
                failure -> {
                    failure.printStackTrace();
                    // The harness sees a failure by the process ending.
                    Runtime.getRuntime().halt(1);
                    return StreamThreadExceptionResponse.SHUTDOWN_CLIENT;
                });
        Runtime.getRuntime().addShutdownHook(new Thread(streams::close));
        streams.start();
    }

    static Topology topology(String source, String output) {
        Serde<Envelope> envelopes = JsonSerde.of(Envelope.class);
        Serde<OrderAccepted> accepted = JsonSerde.of(OrderAccepted.class);
        StreamsBuilder builder = new StreamsBuilder();
        builder.stream(source, Consumed.with(Serdes.String(), envelopes))
                .processValues(new AcceptOrderSupplier())
                .to(output, Produced.with(Serdes.String(), accepted));
        return builder.build();
    }

    private static Properties settings(String guarantee) {
        boolean exactlyOnce = guarantee.equals(StreamsConfig.EXACTLY_ONCE_V2);
        Properties settings = new Properties();
        settings.put(StreamsConfig.APPLICATION_ID_CONFIG, environment("BENCH_RUN"));
        settings.put(StreamsConfig.BOOTSTRAP_SERVERS_CONFIG, environment("BENCH_BOOTSTRAP"));
        settings.put(StreamsConfig.STATE_DIR_CONFIG, environment("BENCH_STATE_DIR"));
        settings.put(StreamsConfig.PROCESSING_GUARANTEE_CONFIG, guarantee);
        // At least once, the default of 30 s would be longer than a run: the changelog would never be written.
        settings.put(StreamsConfig.COMMIT_INTERVAL_MS_CONFIG, exactlyOnce ? 100 : 1000);
        settings.put(StreamsConfig.NUM_STREAM_THREADS_CONFIG, 1);
        settings.put(StreamsConfig.consumerPrefix(ConsumerConfig.AUTO_OFFSET_RESET_CONFIG), "earliest");
        return settings;
    }

    private static String environment(String name) {
        String value = System.getenv(name);
        if (value == null) {
            throw new IllegalStateException(name + " is not set");
        }
        return value;
    }

    private static final class AcceptOrderSupplier
            implements FixedKeyProcessorSupplier<String, Envelope, OrderAccepted> {

        @Override
        public FixedKeyProcessor<String, Envelope, OrderAccepted> get() {
            return new AcceptOrder();
        }

        @Override
        public Set<StoreBuilder<?>> stores() {
            return Set.of(
                    Stores.keyValueStoreBuilder(
                                    Stores.persistentKeyValueStore(CUSTOMERS),
                                    Serdes.String(),
                                    JsonSerde.of(Customer.class))
                            .withCachingEnabled());
        }
    }

    /** Counts each order for its customer and says that it was accepted. */
    private static final class AcceptOrder implements FixedKeyProcessor<String, Envelope, OrderAccepted> {

        private FixedKeyProcessorContext<String, OrderAccepted> context;
        private KeyValueStore<String, Customer> customers;

        @Override
        public void init(FixedKeyProcessorContext<String, OrderAccepted> context) {
            this.context = context;
            this.customers = context.getStateStore(CUSTOMERS);
        }

        @Override
        public void process(FixedKeyRecord<String, Envelope> order) {
            Envelope envelope = order.value();
            Customer customer = customers.get(order.key());
            if (customer == null) {
                customer = new Customer(0, 0.0);
            }
            customers.put(order.key(), customer.plus(envelope.payload().total().amount()));
            context.forward(order.withValue(OrderAccepted.of(envelope)));
        }
    }
}
