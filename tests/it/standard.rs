//! The standard services: health and reflection.

use prost::Message;
use prost_types::{FileDescriptorProto, FileDescriptorSet};
use sessiond::proto::FILE_DESCRIPTOR_SET;
use tokio_stream::StreamExt as _;
use tonic::Code;
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};

use crate::{fake::soon, server::Running};

/// The services with a health status. The last one reports whether the registry can be changed.
const NAMES: [&str; 4] =
    ["", "sessiond.v1.SessionService", "sessiond.v1.LeaseService", "sessiond.v1.SessionService/write"];

fn service(name: &str) -> HealthCheckRequest {
    HealthCheckRequest { service: name.to_owned() }
}

#[tokio::test]
async fn health_is_reported_for_the_server_and_each_service() {
    let server = Running::start().await;
    let mut client = HealthClient::new(server.channel());
    for name in NAMES {
        let answer = soon(client.check(service(name))).await.unwrap().into_inner();
        assert_eq!(answer.status(), ServingStatus::Serving, "{name}");
    }
    assert_eq!(soon(client.check(service("x.Y"))).await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test]
async fn health_watches_report_the_drain_and_do_not_delay_it() {
    let server = Running::start().await;
    let mut streams = Vec::new();
    for name in NAMES {
        let mut client = HealthClient::new(server.channel());
        let mut stream = soon(client.watch(service(name))).await.unwrap().into_inner();
        assert_eq!(soon(stream.message()).await.unwrap().unwrap().status(), ServingStatus::Serving);
        streams.push(stream);
    }
    let ended = server.stop();
    for mut stream in streams {
        assert_eq!(soon(stream.message()).await.unwrap().unwrap().status(), ServingStatus::NotServing);
        assert!(soon(stream.message()).await.unwrap().is_none(), "the stream ends");
    }
    let began = std::time::Instant::now();
    soon(ended).await.unwrap().unwrap();
    assert!(began.elapsed() < std::time::Duration::from_secs(4), "the drain timeout is 5 s");
}

macro_rules! reflection {
    ($name:ident, $version:ident) => {
        #[tokio::test]
        async fn $name() {
            use tonic_reflection::pb::$version::{
                ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
                server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
            };

            let server = Running::start().await;
            let mut client = ServerReflectionClient::new(server.channel());
            let asked = [
                MessageRequest::ListServices(String::new()),
                MessageRequest::FileContainingSymbol("sessiond.v1.SessionService".to_owned()),
                MessageRequest::FileContainingSymbol("sessiond.v1.LeaseService".to_owned()),
                MessageRequest::FileContainingSymbol("sessiond.v1.SubscribeResponse".to_owned()),
                MessageRequest::FileByFilename("google/protobuf/duration.proto".to_owned()),
                MessageRequest::FileContainingSymbol("grpc.health.v1.Health".to_owned()),
                // The types of error details, so that tools can show them.
                MessageRequest::FileContainingSymbol("google.rpc.ErrorInfo".to_owned()),
                MessageRequest::FileContainingSymbol("google.rpc.RetryInfo".to_owned()),
                MessageRequest::FileContainingSymbol("google.rpc.BadRequest".to_owned()),
                MessageRequest::FileContainingSymbol("sessiond.v1.ErrorReason".to_owned()),
            ];
            let requests =
                asked.map(|asked| ServerReflectionRequest { host: String::new(), message_request: Some(asked) });
            let mut answers =
                soon(client.server_reflection_info(tokio_stream::iter(requests))).await.unwrap().into_inner();
            let mut files = Vec::new();
            while let Some(answer) = soon(answers.next()).await {
                match answer.unwrap().message_response.unwrap() {
                    MessageResponse::ListServicesResponse(list) => {
                        let names: Vec<String> = list.service.into_iter().map(|service| service.name).collect();
                        for name in ["sessiond.v1.SessionService", "sessiond.v1.LeaseService", "grpc.health.v1.Health"]
                        {
                            assert!(names.iter().any(|listed| listed == name), "{name} is not in {names:?}");
                        }
                    }
                    MessageResponse::FileDescriptorResponse(file) => {
                        let file = FileDescriptorProto::decode(&*file.file_descriptor_proto[0]).unwrap();
                        let services: Vec<_> = file.service.iter().map(|service| service.method.len()).collect();
                        files.push((file.name().to_owned(), services));
                    }
                    other => panic!("{other:?}"),
                }
            }
            let expected = [
                ("sessiond/v1/session_service.proto", vec![9]),
                ("sessiond/v1/lease_service.proto", vec![4]),
                ("sessiond/v1/session_service.proto", vec![9]),
                ("google/protobuf/duration.proto", vec![]),
            ];
            for ((name, services), (expected_name, methods)) in files.iter().zip(expected) {
                assert_eq!((name.as_str(), services), (expected_name, &methods));
            }
            assert_eq!(files.len(), 9);
        }
    };
}

/// Without these options, every user would have to map our protos to packages of their language.
#[test]
fn the_protos_name_their_packages_in_every_language() {
    let set = FileDescriptorSet::decode(FILE_DESCRIPTOR_SET).unwrap();
    let ours: Vec<_> = set.file.iter().filter(|file| file.package() == "sessiond.v1").collect();
    assert_eq!(ours.len(), 3);
    for file in ours {
        let options = file.options.as_ref().unwrap_or_else(|| panic!("{} has options", file.name()));
        let named = [
            (options.go_package(), "sessiond/v1;sessiondv1"),
            (options.java_package(), "com.sessiond.v1"),
            (options.csharp_namespace(), "Sessiond.V1"),
            (options.php_namespace(), r"Sessiond\V1"),
            (options.php_metadata_namespace(), r"Sessiond\V1\GPBMetadata"),
            (options.ruby_package(), "Sessiond::V1"),
            (options.objc_class_prefix(), "SSD"),
        ];
        for (has, expected) in named {
            assert_eq!(has, expected, "{}", file.name());
        }
        assert!(options.java_multiple_files(), "{}", file.name());
    }
}

reflection!(reflection_v1_describes_our_services, v1);
reflection!(reflection_v1alpha_describes_our_services, v1alpha);
