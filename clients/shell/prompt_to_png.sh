#!/usr/bin/env bash
# From a prompt to a PNG file with grpcurl and jq. Ctrl-C cancels the job.
#
#   prompt_to_png.sh --prompt "a man with a beard" --output picture.png
#
# A bearer token comes from the environment: DITMESH_TOKEN.
set -euo pipefail

declare -A option=(
  [address]=localhost:50050 [ca]= [deadline]=60 [model]=pixel-portraits [prompt]=
  [output]=picture.png [size]=128 [steps]=8 [seed]=0
)
while (($# >= 2)); do
  [[ -v option[${1#--}] ]] || { echo "unknown option $1" >&2; exit 2; }
  option[${1#--}]=$2
  shift 2
done

clients=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
end=$((SECONDS + option[deadline]))
# The contract comes from the files, so that error details can be read and a server without
# reflection will do.
flags=(
  -import-path "$clients/../proto" -import-path "$clients/proto" -proto google_rpc.proto
  -proto ditmesh/v1/pipeline.proto -proto ditmesh/v1/sampler.proto -format-error -v
)
if [[ -n ${option[ca]} ]]; then flags+=(-cacert "${option[ca]}"); else flags+=(-plaintext); fi
if [[ -v DITMESH_TOKEN ]]; then
  flags+=(-expand-headers -H 'authorization: Bearer ${DITMESH_TOKEN}')
fi

# call METHOD: requests from standard input, one response a line to standard output. The last line
# is an {"over"}: grpcurl itself stays until its standard input ends.
call() {
  "${GRPCURL:-grpcurl}" "${flags[@]}" -max-time $((end - SECONDS)) -d @ "${option[address]}" \
    "ditmesh.v1.$1" 2>"$work/error" |
    sed --unbuffered --quiet '/^{/,/^}/p; s/^Response trailers received:.*/{"over": true}/p' |
    jq --unbuffered --compact-output .
}

# fail: says why the last call failed, its code and sentence, then each of its details.
fail() {
  jq --raw-output --raw-input --slurp \
    '. as $text | try (fromjson | "code \(.code): \(.message)", (.details[]? | tojson)) catch $text' \
    "$work/error" >&2
  exit 1
}

# upload FILE RESPONSE: the chunks in FILE that RESPONSE asks for.
upload() {
  local index
  for index in $(jq '.needed.tensors[]?' <<<"$2"); do
    jq --compact-output "select(.chunk) | select((.chunk.tensor // 0) == $index) | {chunk}" "$1"
  done
}

jq --null-input --arg model "${option[model]}" --arg prompt "${option[prompt]}" '{$model, $prompt}' |
  call PipelineService/EncodePrompt >"$work/encoded" || fail

# The specs carry hashes: the server still has the prompt's tensors, and asks for none of them.
job=$(jq --compact-output --arg model "${option[model]}" --arg seed "${option[seed]}" \
  --argjson steps "${option[steps]}" --argjson cells "$((option[size] / 8))" \
  'select(.encoded) | .encoded | {job: {
    $model, sampler: "euler", $seed, positive: .conditioning, tensors,
    schedule: {named: {scheduler: "simple", $steps}},
    empty_latent: {batch: 1, height: $cells, width: $cells}
  }}' "$work/encoded")

# converse METHOD REQUEST CHUNKS ANSWERS: sends REQUEST, then those chunks of the file CHUNKS that
# the server asks for; its responses go to the file ANSWERS. The call does not hear Ctrl-C: that of
# a job lives to send the cancel.
converse() {
  local response requests responses
  rm -f "$work/requests" "$work/responses"
  mkfifo "$work/requests" "$work/responses"
  { trap '' INT && call "$1"; } <"$work/requests" >"$work/responses" &
  exec {requests}>"$work/requests" {responses}<"$work/responses"
  [[ $1 != SamplerService/Sample ]] || trap 'echo "{\"cancel\": {}}" >&"$requests"' INT
  echo "$2" >&"$requests"
  while read -r response <&"$responses" || (($? > 128)); do
    upload "$3" "$response" >&"$requests" || true
    jq --raw-output '
      if .accepted then "job \(.accepted.jobId)"
      elif .progress then "step \(.progress.step)/\(.progress.steps)"
      else .summary.fallbacks[]? | "fallback to \(.target): \(.message)" end' <<<"$response" || true
    echo "$response" >>"$4"
    [[ $response != '{"over"'* ]] || exec {requests}>&-
  done
  exec {responses}<&-
  trap - INT
  wait $! || fail
}

converse SamplerService/Sample "$job" "$work/encoded" "$work/sampled"

# The latent has a hash too.
latent=$(jq --compact-output --arg model "${option[model]}" 'select(.result) |
  {latent: {$model, latent: .result.tensors[0], format: "IMAGE_FORMAT_PNG"}}' "$work/sampled")
converse PipelineService/DecodeLatent "$latent" "$work/sampled" "$work/pictures"
jq --raw-output '.chunk.data // empty' "$work/pictures" |
  while read -r piece; do base64 --decode <<<"$piece"; done >"${option[output]}"
echo "${option[output]}: $(stat --format %s "${option[output]}") bytes"
