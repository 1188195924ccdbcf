#!/bin/sh
# Builds build/prompt_to_png with Debian's packages, without a build system.
set -eu
cd "$(dirname "$0")"
mkdir -p build/sources build/classes build/native
path=$PWD/build/classes
for jar in /usr/share/java/grpc-*.jar /usr/share/java/netty-*.jar /usr/share/java/perfmark-*.jar \
  /usr/share/java/protobuf.jar /usr/share/java/guava.jar /usr/share/java/geronimo-annotation-*.jar
do
  path=$path:$jar
done
protoc -I ../../proto -I ../proto --java_out=build/sources --grpc-java_out=build/sources \
  --plugin=protoc-gen-grpc-java=/usr/bin/grpc_java_plugin google_rpc.proto \
  ditmesh/v1/job.proto ditmesh/v1/pipeline.proto ditmesh/v1/sampler.proto ditmesh/v1/tensor.proto
find build/sources -name '*.java' -exec javac -nowarn -d build/classes -cp "$path" ./*.java {} +
# For TLS: Debian's netty knows ALPN by OpenSSL alone, and looks for it under another file name.
cp /usr/lib/*/jni/libnetty-tcnative.so build/native/libnetty_tcnative.so
printf '#!/bin/sh\nexec java -Djava.library.path="%s" -cp "%s" PromptToPng "$@"\n' \
  "$PWD/build/native" "$path" >build/prompt_to_png
chmod +x build/prompt_to_png
