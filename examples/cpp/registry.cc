#include "registry.h"

#include <google/protobuf/any.pb.h>
#include <google/protobuf/duration.pb.h>
#include <google/protobuf/empty.pb.h>

#include <algorithm>
#include <condition_variable>
#include <mutex>
#include <random>
#include <vector>

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
  for (int failures = 0; !stop.stop_requested(); failures++) {
    if (cursor.empty()) {
      request.set_snapshot(true);
    } else {
      request.set_cursor(cursor);
    }
    auto status = read(stop, request, [&](const pb::SubscribeResponse& message) {
      cursor = message.cursor();
      if (!message.has_subscribed()) {
        failures = 0;
      }
      handle(message);
    });
    switch (status.error_code()) {
      case grpc::StatusCode::INVALID_ARGUMENT:
      case grpc::StatusCode::UNAUTHENTICATED:
      case grpc::StatusCode::PERMISSION_DENIED:
      case grpc::StatusCode::UNIMPLEMENTED:
        return status;
      default:
        pause(stop, status, failures);
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

namespace {

// Returns the fields of a message that have this number and are messages themselves.
std::vector<std::string> messages_in(const std::string& message, int number) {
  google::protobuf::Empty parsed;
  parsed.ParseFromString(message);
  std::vector<std::string> found;
  const auto& fields = parsed.GetReflection()->GetUnknownFields(parsed);
  for (int i = 0; i < fields.field_count(); i++) {
    const auto& field = fields.field(i);
    if (field.number() == number && field.type() == google::protobuf::UnknownField::TYPE_LENGTH_DELIMITED) {
      found.push_back(field.length_delimited());
    }
  }
  return found;
}

// Returns how long the registry asks to wait. With the stubs of googleapis, which Debian does not have, this would be
// a google.rpc.RetryInfo in a google.rpc.Status.
std::chrono::milliseconds retry_after(const grpc::Status& status) {
  for (const auto& detail : messages_in(status.error_details(), 3)) {
    google::protobuf::Any any;
    any.ParseFromString(detail);
    if (any.type_url() != "type.googleapis.com/google.rpc.RetryInfo") {
      continue;
    }
    for (const auto& delay : messages_in(any.value(), 1)) {
      google::protobuf::Duration duration;
      duration.ParseFromString(delay);
      return std::chrono::seconds(duration.seconds()) + std::chrono::milliseconds(duration.nanos() / 1'000'000);
    }
  }
  return 0ms;
}

}  // namespace

void pause(const std::stop_token& stop, const grpc::Status& status, int failures) {
  thread_local std::mt19937 random{std::random_device{}()};
  std::uniform_int_distribution<int> delays(0, failures < 4 ? 100 << failures : 1000);
  const auto wait = std::max(std::chrono::milliseconds(delays(random)), retry_after(status));
  std::mutex mutex;
  std::unique_lock lock(mutex);
  std::condition_variable_any().wait_for(lock, stop, wait, [] { return false; });
}

bool is_lease_gone(const grpc::Status& status) {
  return status.error_code() == grpc::StatusCode::NOT_FOUND ||
         status.error_code() == grpc::StatusCode::FAILED_PRECONDITION;
}
