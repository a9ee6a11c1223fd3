#include "registry.h"

#include <condition_variable>
#include <mutex>

Registry::Registry(const std::string& address) {
  grpc::ChannelArguments arguments;
  // The default waits for up to two minutes before it connects again.
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 100);
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 1000);
  // How long an attempt to connect may take.
  arguments.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 5000);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, 10'000);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 5000);
  // What versions newer than Debian's call it.
  arguments.SetInt("grpc.http2.ping_timeout_ms", 5000);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  arguments.SetInt(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
  auto channel = grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), arguments);
  sessions = pb::SessionService::NewStub(channel);
  leases = pb::LeaseService::NewStub(channel);
}

grpc::Status Registry::follow(std::stop_token stop, pb::SubscribeRequest request, const Handler& handle) {
  std::string cursor;
  while (!stop.stop_requested()) {
    if (cursor.empty()) {
      request.set_snapshot(true);
    } else {
      request.set_cursor(cursor);
    }
    auto status = read(stop, request, [&](const pb::SubscribeResponse& message) {
      cursor = message.cursor();
      handle(message);
    });
    switch (status.error_code()) {
      case grpc::StatusCode::INVALID_ARGUMENT:
      case grpc::StatusCode::UNAUTHENTICATED:
      case grpc::StatusCode::PERMISSION_DENIED:
      case grpc::StatusCode::UNIMPLEMENTED:
        return status;
      default:
        pause(stop, 1s);
    }
  }
  return grpc::Status::CANCELLED;
}

grpc::Status Registry::read(std::stop_token stop, const pb::SubscribeRequest& request, const Handler& handle) {
  grpc::ClientContext context;
  context.set_wait_for_ready(true);
  std::stop_callback cancel(stop, [&] { context.TryCancel(); });
  std::chrono::seconds silence = 10s;
  grpc::CompletionQueue queue;
  // Waits for the operation that was started last, and cancels the stream if that takes too long.
  auto completes = [&] {
    void* tag;
    bool ok = false;
    if (queue.AsyncNext(&tag, &ok, std::chrono::system_clock::now() + silence) == grpc::CompletionQueue::TIMEOUT) {
      context.TryCancel();
      queue.Next(&tag, &ok);
    }
    return ok;
  };
  auto stream = sessions->AsyncSubscribe(&context, request, &queue, nullptr);
  pb::SubscribeResponse message;
  for (bool ok = completes(); ok;) {
    stream->Read(&message, nullptr);
    ok = completes();
    if (ok) {
      if (message.has_subscribed()) {
        silence = 3 * std::chrono::seconds(message.subscribed().heartbeat().seconds() + 1);
      }
      handle(message);
    }
  }
  grpc::Status status;
  stream->Finish(&status, nullptr);
  completes();
  return status;
}

void pause(const std::stop_token& stop, std::chrono::milliseconds wait) {
  std::mutex mutex;
  std::unique_lock lock(mutex);
  std::condition_variable_any().wait_for(lock, stop, wait, [] { return false; });
}

bool is_lease_gone(const grpc::Status& status) {
  return status.error_code() == grpc::StatusCode::NOT_FOUND ||
         status.error_code() == grpc::StatusCode::FAILED_PRECONDITION;
}
