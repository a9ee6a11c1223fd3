// Registers OpenTelemetry's instrumentation of grpc-js. Import this before the client.
import { GrpcInstrumentation } from "@opentelemetry/instrumentation-grpc";
import { BasicTracerProvider, InMemorySpanExporter, SimpleSpanProcessor } from "@opentelemetry/sdk-trace-base";

/** The spans that have ended. */
export const exporter = new InMemorySpanExporter();

const tracerProvider = new BasicTracerProvider({ spanProcessors: [new SimpleSpanProcessor(exporter)] });
new GrpcInstrumentation().setTracerProvider(tracerProvider);
